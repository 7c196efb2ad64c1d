{
  module.services.lares.models.coder.accelerator = "rocm";
  units."lares-llama-coder.service" = {
    has = [
      "DeviceAllow=char-kfd rw"
      "DeviceAllow=char-drm rw"
    ];
    lacks = [
      "PrivateDevices=true"
      "nvidia"
    ];
  };
}
