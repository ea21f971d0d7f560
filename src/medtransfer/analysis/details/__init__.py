"""What a report shows beyond intervals: curves, calibration, subgroups, worst cases."""
