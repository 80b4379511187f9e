"""How the embedded family was made: one file for each of its parts, run in order by `training/runs/embedded.sh`."""
