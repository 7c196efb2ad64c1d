# A NixOS system of the given modules, evaluated offline.
#
# nixpkgs: a whole nixpkgs tree. With a current one nothing else is needed.
# nixpkgsLib: a newer `lib` directory to use with an old tree. The modules under test then run on that `lib`, on top of
#   the old tree's NixOS modules. Options and packages that the old tree lacks are declared below: as little as the
#   modules under test touch, so that a service which is only declared here has no units of its own.
# pkgs: an evaluated package set to use again, because evaluating one takes longer than evaluating a small system.
{
  nixpkgs,
  nixpkgsLib ? null,
  pkgs ? null,
  modules ? [ ],
}:
let
  old = nixpkgsLib != null;

  lib =
    if old then
      (import nixpkgsLib).extend (
        _: prev: {
          # What the old modules use and the newer lib has dropped.
          replaceChars = builtins.replaceStrings;
          literalExample = prev.literalExpression;
          mapAttrsFlatten = prev.mapAttrsToList;
          fold = prev.foldr;
          types = prev.types // {
            string = prev.types.str;
          };
          options = prev.options // {
            literalExample = prev.literalExpression;
          };
          strings = prev.strings // {
            replaceChars = builtins.replaceStrings;
          };
          # Nix before 2.14 has no builtins.readFileType.
          filesystem = prev.filesystem // {
            pathType =
              path:
              if dirOf path == path then "directory" else (builtins.readDir (dirOf path)).${baseNameOf path};
          };
        }
      )
    else
      import (nixpkgs + "/lib");

  # Lares itself is not built here: evaluation only needs a derivation with the right name and main program.
  laresOverlay = final: _: {
    lares = final.writeShellScriptBin "lares" "exit 0" // {
      pname = "lares";
      version = "0";
      meta = {
        mainProgram = "lares";
        platforms = lib.platforms.linux;
      };
    };
  };

  stub =
    final: name:
    final.writeShellScriptBin name "exit 0"
    // {
      pname = name;
      version = "0";
      override = _: stub final name;
      overrideAttrs = _: stub final name;
      meta = {
        mainProgram = name;
        platforms = lib.platforms.linux;
      };
    };

  # Packages, and functions that make them, that came after the old tree.
  oldOverlay =
    final: prev:
    lib.genAttrs [
      "cargo-deny"
      "deadnix"
      "gitMinimal"
      "llama-cpp"
      "nixfmt"
      "nixfmt-tree"
      "python3Minimal"
      "qdrant"
      "rust-analyzer"
      "statix"
      "valkey"
    ] (stub final)
    // {
      # What old packages know stays as they know it.
      lib = lib // prev.lib;
      rustPlatform = prev.rustPlatform // {
        bindgenHook = stub final "bindgen-hook";
        # It took the environment as arguments like others.
        buildRustPackage =
          arguments:
          prev.stdenv.mkDerivation (
            removeAttrs arguments [
              "cargoLock"
              "env"
            ]
            // arguments.env or { }
          );
      };
      writeShellApplication =
        {
          name,
          text,
          ...
        }:
        final.writeShellScriptBin name text // { meta.mainProgram = name; };
      nixosOptionsDoc = _: {
        optionsCommonMark = stub final "options.md";
        optionsJSON = stub final "options.json";
      };
      # The machines of a test are evaluated by vm.nix.
      testers = {
        runNixOSTest = _: stub final "test";
        testBuildFailure = _: stub final "failure";
      };
      formats = lib.genAttrs [ "toml" "json" "yaml" "ini" "keyValue" ] (
        kind: _: {
          type =
            let
              value =
                lib.types.nullOr (
                  lib.types.oneOf [
                    lib.types.bool
                    lib.types.int
                    lib.types.float
                    lib.types.str
                    lib.types.path
                    (lib.types.attrsOf value)
                    (lib.types.listOf value)
                  ]
                )
                // {
                  description = "${lib.toUpper kind} value";
                };
            in
            lib.types.attrsOf value;
          generate = name: value: prev.writeText name (builtins.toJSON value);
        }
      );
    };

  option = type: default: lib.mkOption { inherit type default; };
  anything = lib.types.attrsOf lib.types.anything;

  # Options that came after the old tree.
  newer =
    { config, pkgs, ... }:
    {
      options = {
        systemd.tmpfiles.settings = option (lib.types.attrsOf (
          lib.types.attrsOf (lib.types.attrsOf lib.types.anything)
        )) { };
        systemd.settings.Manager = option anything { };
        services.redis.servers = option anything { };
        services.qdrant = option anything { };
        services.postgresql.settings = option anything { };
        services.postgresql.ensureUsers = lib.mkOption {
          type = lib.types.listOf (
            lib.types.submodule {
              options.ensureDBOwnership = option lib.types.bool false;
              options.ensureClauses = option anything { };
            }
          );
        };
        nixpkgs.hostPlatform = option lib.types.raw null;
        hardware.graphics.enable = option lib.types.bool false;
        hardware.nvidia.open = option lib.types.bool false;
        security.polkit.settings = option anything { };
      };
      config = {
        systemd.targets.postgresql = { };
        # By name only: what they do is not asked.
        systemd.services =
          lib.optionalAttrs (config.services.qdrant.enable or false) { qdrant = { }; }
          // lib.mapAttrs' (name: _: lib.nameValuePair "redis-${name}" { }) config.services.redis.servers;
        _module.args.utils = lib.mkForce (
          import (nixpkgs + "/nixos/lib/utils.nix") pkgs
          // rec {
            escapeSystemdExecArg =
              arg:
              builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (
                builtins.toJSON (
                  if builtins.isString arg || lib.isDerivation arg || builtins.isPath arg then
                    "${arg}"
                  else
                    toString arg
                )
              );
            escapeSystemdExecArgs = lib.concatMapStringsSep " " escapeSystemdExecArg;
          }
        );
      };
    };

  # Nobody boots these systems: as a container they need no boot loader and no file systems.
  quick = {
    nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";
    boot.isContainer = lib.mkDefault true;
    documentation.enable = lib.mkDefault false;
    documentation.nixos.enable = lib.mkDefault false;
    system.stateVersion = lib.mkDefault (if old then "20.09" else lib.trivial.release);
  };

  own = import nixpkgs {
    localSystem = {
      system = "x86_64-linux";
    }
    // lib.optionalAttrs old { canExecute = _: true; };
    config.allowUnfree = true;
    overlays = [ laresOverlay ] ++ lib.optional old oldOverlay;
  };
in
{
  inherit lib;
  # The package set, to be handed to many systems as `pkgs`.
  pkgs = own;

  system = import (nixpkgs + "/nixos/lib/eval-config.nix") (
    {
      inherit lib;
      # Today's trees take it from `nixpkgs.hostPlatform`.
      system = if old then "x86_64-linux" else null;
      modules = [
        quick
      ]
      ++ lib.optional old newer
      ++ lib.optional (!old) (
        if pkgs != null then { nixpkgs.pkgs = pkgs; } else { nixpkgs.overlays = [ laresOverlay ]; }
      )
      ++ modules;
    }
    // lib.optionalAttrs old { pkgs = if pkgs != null then pkgs else own; }
  );
}
