"""A package, so that it comes before the `tests` that gmqtt installs; the folders below are none."""
