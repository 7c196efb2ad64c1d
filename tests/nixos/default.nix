# The virtual machine tests, and one that needs no machine, as checks of the flake.
#
# module: the NixOS module under test. pkgs: with the overlay, so that it has `lares`.
{ pkgs, module }:
builtins.mapAttrs (_: test: pkgs.testers.runNixOSTest { imports = test; }) (
  import ./tests.nix {
    inherit (pkgs) lib;
    inherit module;
  }
)
// {
  # A key that no option knows never becomes a generation: the system does not build, and says what was meant.
  lares-bad-settings =
    let
      system = pkgs.nixos {
        imports = [ module ];
        services.lares = {
          enable = true;
          models.coder.path = "/srv/models/coder.gguf";
          settings.ralph.max_iteration = 5;
        };
      };
    in
    pkgs.runCommand "lares-bad-settings"
      { failed = pkgs.testers.testBuildFailure system.config.services.lares.configFile; }
      ''
        grep --fixed-strings 'did you mean `max_iterations`' $failed/testBuildFailure.log
        [ "$(cat $failed/testBuildFailure.exit)" = 78 ]
        touch $out
      '';
}
