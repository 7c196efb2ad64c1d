# The virtual machine tests, evaluated: every node's system, and the script as text. Nothing is built or booted.
#
# With a current nixpkgs the test framework itself evaluates them. An old tree has another framework, so its part is
# played by the few options of the new one that our tests use.
{
  nixpkgs,
  nixpkgsLib ? null,
}:
let
  bed = arguments: import ./nixos.nix ({ inherit nixpkgs nixpkgsLib; } // arguments);
  inherit (bed { }) lib pkgs;
  module = ../../nixos-modules;

  framework =
    let
      deferred = lib.mkOption {
        type = lib.types.deferredModule;
        default = { };
      };
    in
    {
      options = {
        name = lib.mkOption { type = lib.types.str; };
        meta = lib.mkOption {
          type = lib.types.attrsOf lib.types.anything;
          default = { };
        };
        defaults = deferred;
        nodes = lib.mkOption { type = lib.types.lazyAttrsOf lib.types.deferredModule; };
        testScript = lib.mkOption {
          type = lib.types.either lib.types.str (lib.types.functionTo lib.types.str);
        };
        globalTimeout = lib.mkOption { type = lib.types.int; };
        skipTypeCheck = lib.mkOption { type = lib.types.bool; };
      };
      config._module.args = {
        inherit pkgs;
        hostPkgs = pkgs;
      };
    };

  # What a node has from the framework and an old tree lacks.
  node =
    name:
    { lib, ... }:
    {
      options.virtualisation = {
        memorySize = lib.mkOption { type = lib.types.ints.positive; };
        diskSize = lib.mkOption { type = lib.types.ints.positive; };
        cores = lib.mkOption { type = lib.types.ints.positive; };
      };
      config.networking.hostName = lib.mkDefault name;
    };

  stubbed =
    test:
    let
      evaluated = lib.evalModules { modules = [ framework ] ++ test; };
      inherit (evaluated) config;
      # An old tree evaluates specialisations with its own lib, which the modules are too new for: each is evaluated as
      # a system of its own instead.
      alone.specialisation = lib.mkForce { };
      system = modules: (bed { inherit pkgs modules; }).system.config;
      systems = lib.concatMapAttrs (
        name: own:
        let
          modules = [
            (node name)
            config.defaults
            own
          ];
        in
        {
          ${name} = system (modules ++ [ alone ]);
        }
        // lib.mapAttrs' (
          special: child:
          lib.nameValuePair "${name}/${special}" (
            system (
              modules
              ++ [
                alone
                child.configuration
              ]
            )
          )
        ) (system modules).specialisation
      ) config.nodes;
    in
    {
      inherit systems;
      inherit (config) name;
      machines = lib.attrNames config.nodes;
      script =
        if lib.isFunction config.testScript then
          config.testScript { nodes = systems; }
        else
          config.testScript;
    };

  real =
    test:
    let
      inherit
        ((import (nixpkgs + "/nixos/lib") { }).evalTest {
          imports = test;
          hostPkgs = pkgs;
          node.pkgs = pkgs;
        })
        config
        ;
    in
    {
      inherit (config) name;
      systems = config.nodes;
      machines = lib.attrNames config.nodes;
      script = config.testScriptString;
    };

  tests = import ../nixos/tests.nix { inherit lib module; };
in
lib.mapAttrs (
  _: test:
  let
    evaluated = (if nixpkgsLib == null then real else stubbed) test;
  in
  {
    inherit (evaluated) name machines script;
    systems = lib.mapAttrs (_: config: {
      assertions = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
      system = config.system.build.toplevel.drvPath;
    }) evaluated.systems;
  }
) tests
