# Every virtual machine test, as a list of test modules. `default.nix` runs them, `../nix/vm.nix` only evaluates them.
{ lib, module }:
lib.mapAttrs
  (name: file: [
    file
    {
      inherit name;
      defaults.imports = [
        module
        ./machine.nix
      ];
    }
  ])
  {
    lares-auth = ./auth.nix;
    lares-boot = ./boot.nix;
    lares-chat = ./chat.nix;
    lares-cluster = ./cluster.nix;
    lares-database-down = ./database-down.nix;
    lares-healer = ./healer.nix;
    lares-killed = ./killed.nix;
    lares-model-pull = ./model-pull.nix;
    lares-port-conflict = ./port-conflict.nix;
    lares-rollback = ./rollback.nix;
    lares-task = ./task.nix;
    lares-tools = ./tools.nix;
    lares-upgrade = ./upgrade.nix;
  }
