# The driver is the machine's own business; the module only insists that there is one.
{
  module = {
    hardware.graphics.enable = true;
    services.lares.models.coder = {
      accelerator = "cuda";
      gpuLayers = 99;
    };
  };
  settings.models.coder.gpu_layers = 99;
  units = {
    "lares-llama-coder.service" = {
      has = [
        "DeviceAllow=char-nvidia-uvm rw"
        "DevicePolicy=closed"
        "SupplementaryGroups=render"
        "CacheDirectory=lares-llama-coder"
      ];
      # CUDA compiles its kernels when they are first used.
      lacks = [
        "MemoryDenyWriteExecute=true"
        "PrivateDevices=true"
      ];
    };
    # Only the unit that needs the device sees it.
    "lares-coordinator.service" = {
      has = [ "PrivateDevices=true" ];
      lacks = [ "nvidia" ];
    };
  };
}
