"""The evaluation bed of the NixOS modules. `../run` is the program."""
