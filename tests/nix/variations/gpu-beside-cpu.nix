# One model on the GPU, one on the CPU: the second keeps every protection.
{
  module = {
    hardware.graphics.enable = true;
    services.lares.models = {
      coder.accelerator = "cuda";
      embed = {
        path = "/srv/models/embed.gguf";
        embeddings = true;
      };
    };
  };
  units = {
    "lares-llama-coder.service".lacks = [ "PrivateDevices=true" ];
    "lares-llama-embed.service" = {
      has = [
        "PrivateDevices=true"
        "MemoryDenyWriteExecute=true"
      ];
      lacks = [ "nvidia" ];
    };
  };
}
