"""The subcommands of `vino-rt`, one file each; importing them loads neither torch nor a backend."""
