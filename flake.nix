{
  description = "Lares: a self-healing home for local AI coding agents";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;

      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      # For each system, with `pkgs.lares` in it.
      perSystem =
        make:
        lib.genAttrs systems (system: make (nixpkgs.legacyPackages.${system}.extend self.overlays.default));

      hosts = {
        workstation = ./hosts/workstation;
        gpu = ./hosts/gpu;
        cluster-control = ./hosts/cluster/control;
        cluster-worker = ./hosts/cluster/worker;
      };
    in
    {
      overlays.default = final: _: {
        lares = final.callPackage ./nix/package.nix { };
      };

      packages = perSystem (pkgs: {
        inherit (pkgs) lares;
        default = pkgs.lares;
        options-doc = (import ./nix/options-doc.nix { inherit lib pkgs; }).package;
      });

      nixosModules = {
        default = self.nixosModules.lares;
        lares = {
          # The same module from two places is one.
          key = "lares.nixosModules.lares";
          imports = [
            ./nixos-modules
            (
              { lib, pkgs, ... }:
              {
                # The program of this flake, built with the nixpkgs that its lock file names.
                services.lares.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.lares;
              }
            )
          ];
        };
      };

      nixosConfigurations = lib.mapAttrs (
        _: host:
        lib.nixosSystem {
          modules = [
            self.nixosModules.default
            host
          ];
        }
      ) hosts;

      checks = perSystem (
        pkgs:
        let
          nixFiles = lib.fileset.toSource {
            root = ./.;
            fileset = lib.fileset.fileFilter (file: file.hasExt "nix") ./.;
          };
          # Passes when `command` does, over all Nix files of this repository.
          overNixFiles =
            name: tool: command:
            pkgs.runCommand name { nativeBuildInputs = [ tool ]; } ''
              cd ${nixFiles}
              ${command}
              touch $out
            '';
          # Evaluated, with all assertions, and not built: a host may need a compiler run of hours.
          evaluates =
            name: host:
            pkgs.writeText "host-${name}" (
              builtins.unsafeDiscardStringContext host.config.system.build.toplevel.drvPath
            );
        in
        {
          package = pkgs.lares;
          inherit (self.packages.${pkgs.stdenv.hostPlatform.system}) options-doc;

          rustfmt =
            pkgs.runCommand "lares-rustfmt"
              {
                nativeBuildInputs = [
                  pkgs.cargo
                  pkgs.rustfmt
                ];
              }
              ''
                cd ${pkgs.lares.src}
                cargo fmt --all --check -- --config-path ${./rustfmt.toml}
                touch $out
              '';
          nixfmt =
            overNixFiles "lares-nixfmt" pkgs.nixfmt
              "find . -name '*.nix' -print0 | xargs -0 nixfmt --check";
          deadnix = overNixFiles "lares-deadnix" pkgs.deadnix "deadnix --fail .";
          statix = overNixFiles "lares-statix" pkgs.statix "statix check --config ${./statix.toml} .";
        }
        // lib.mapAttrs' (name: host: lib.nameValuePair "host-${name}" (evaluates name host)) (
          lib.filterAttrs (
            _: host: host.pkgs.stdenv.hostPlatform.system == pkgs.stdenv.hostPlatform.system
          ) self.nixosConfigurations
        )
        // import ./tests/nixos {
          inherit pkgs;
          module = self.nixosModules.default;
        }
      );

      apps = perSystem (
        pkgs:
        let
          # `lares up` finds these on PATH and brings everything else itself.
          up = pkgs.writeShellApplication {
            name = "lares-up";
            runtimeInputs = [
              pkgs.git
              pkgs.lares
              pkgs.llama-cpp
              pkgs.postgresql
            ];
            text = ''exec lares up "$@"'';
          };
        in
        {
          default = {
            type = "app";
            program = lib.getExe up;
            meta.description = "Everything on this machine, in the foreground: database, a model, coordinator, ralph";
          };
          lares = {
            type = "app";
            program = lib.getExe pkgs.lares;
            meta.description = "The lares command";
          };
        }
      );

      devShells = perSystem (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ pkgs.lares ];
          packages = [
            pkgs.cargo
            pkgs.cargo-deny
            pkgs.clippy
            pkgs.deadnix
            pkgs.git
            pkgs.llama-cpp
            pkgs.nixfmt
            pkgs.postgresql
            pkgs.python3
            pkgs.rust-analyzer
            pkgs.rustc
            pkgs.rustfmt
            pkgs.statix
          ];
        };
      });

      formatter = perSystem (pkgs: pkgs.nixfmt-tree);
    };
}
