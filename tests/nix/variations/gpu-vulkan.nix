{
  module = {
    hardware.graphics.enable = true;
    services.lares.models.coder.accelerator = "vulkan";
  };
  units."lares-llama-coder.service" = {
    has = [ "DeviceAllow=char-drm rw" ];
    lacks = [
      "PrivateDevices=true"
      "kfd"
    ];
  };
}
