# Plays the nixpkgs flake when the flake of this repository is evaluated with the tree at hand. `run` copies it into a
# flake of its own, from where paths of this repository are known by their variables only.
{
  outputs =
    _:
    let
      path = variable: /. + builtins.getEnv variable;
      arguments = {
        nixpkgs = path "LARES_TEST_NIXPKGS";
        nixpkgsLib =
          if builtins.getEnv "LARES_TEST_NIXPKGS_LIB" == "" then null else path "LARES_TEST_NIXPKGS_LIB";
      };
      bed = more: import (path "LARES_TEST_BED" + "/nixos.nix") (arguments // more);
      inherit (bed { }) lib pkgs;
    in
    {
      lib = lib // {
        nixosSystem = { modules, ... }: (bed { inherit modules; }).system;
      };
      # One package set plays all of them: what differs between systems is not in this repository.
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (_: pkgs);
    };
}
