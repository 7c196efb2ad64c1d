# One machine with an NVIDIA GPU. For AMD: `rocmSupport = true` and `accelerator = "rocm"`; for Intel, and for AMD
# without ROCm: `vulkanSupport = true` and `accelerator = "vulkan"`; neither needs the NVIDIA lines.
{ pkgs, ... }:
{
  imports = [ ../hardware-configuration.nix ];

  networking.hostName = "gpu";
  nixpkgs.hostPlatform = "x86_64-linux";
  # NVIDIA's driver and CUDA are not free software.
  nixpkgs.config.allowUnfree = true;
  system.stateVersion = "26.05";

  hardware.graphics.enable = true;
  hardware.nvidia = {
    open = true;
    # Keeps the driver loaded and its devices there while nobody uses them.
    nvidiaPersistenced = true;
  };
  services.xserver.videoDrivers = [ "nvidia" ];

  # Where ralph works; its user owns it, so `sudo -u lares git clone …` fills it.
  systemd.tmpfiles.settings."10-repositories"."/srv/repositories".d = {
    user = "lares";
    group = "lares";
    mode = "0755";
  };

  services.lares = {
    enable = true;

    llama.package = pkgs.llama-cpp.override { cudaSupport = true; };

    models.coder = {
      source = "qwen2.5-coder-1.5b-instruct";
      accelerator = "cuda";
      gpuLayers = 99;
      contextSize = 32768;
      slots = 4;
      kvType = "q8_0";
      microBatchSize = 512;
    };

    ralph = {
      repositories = [ "/srv/repositories" ];
      workers = 4;
      path = [
        pkgs.gnumake
        pkgs.python3
      ];
    };
  };
}
