#!/usr/bin/env bash
# Pictures of a report for docs/: 1280 and 390 pixels wide, light and dark. Needs Debian's chromium.
#   bash scripts/screenshots.sh REPORT.html docs/pictures
set -euo pipefail
report=$(realpath "$1") out=$2
mkdir -p "$out"
for width in 1280 390; do
  for theme in light dark; do
    scheme=$([ $theme = dark ] && echo 0 || echo 1)
    height=$([ $width = 1280 ] && echo 1640 || echo 1900)
    chromium --headless --no-sandbox --disable-gpu --hide-scrollbars \
      --host-resolver-rules='MAP * ~NOTFOUND' --blink-settings=preferredColorScheme="$scheme" \
      --window-size=$width,$height --screenshot="$out/report-$width-$theme.png" "file://$report" 2>/dev/null
  done
done
