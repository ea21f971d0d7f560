"""What the store could not be told while it did not answer."""

from __future__ import annotations

from collections import Counter

from medtransfer import console
from medtransfer.commands.trials import open_configured
from medtransfer.config import TrainConfig
from medtransfer.secrets import redact
from medtransfer.tracking.spool import deliver_abandoned, spools


def sync(config: TrainConfig) -> None:
    """Deliver what earlier commands have left; what a running one has to tell, it tells itself.

    Raises:
        StoreError: If the store does not answer.
    """
    store = open_configured(config)
    done = deliver_abandoned(store)
    console.say(f"{done} runs were completed in the store" if done else "nothing waits")
    others = Counter(str(spool.about.get("store")) for spool in spools(store.spool))
    for uri, count in sorted(others.items()):
        own = uri == redact(store.uri)
        why = "are still being written" if own else f"wait for tracking.uri={uri}"
        console.say(f"{count} runs {why}")
