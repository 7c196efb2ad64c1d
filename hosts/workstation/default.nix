# One machine without a GPU: a model for code, one for embeddings, and a person whose repositories ralph works on.
{ pkgs, ... }:
{
  imports = [ ../hardware-configuration.nix ];

  networking.hostName = "workstation";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";

  users.users.alice = {
    isNormalUser = true;
    extraGroups = [ "wheel" ];
  };

  services.lares = {
    enable = true;

    # ralph commits to repositories of alice, and git refuses those of another user.
    user = "alice";
    group = "users";

    models.coder = {
      source = "qwen2.5-coder-1.5b-instruct";
      aliases = [ "gpt-4o" ];
      contextSize = 8192;
      slots = 2;
      memoryMax = "4 GiB";
    };

    ralph = {
      repositories = [ "/home/alice/src" ];
      path = [
        pkgs.gnumake
        pkgs.python3
      ];
    };
  };
}
