# Every tunable of a model away from its default.
{
  module.services.lares.models.coder = {
    aliases = [
      "gpt-4o"
      "default"
    ];
    port = 9001;
    contextSize = 16384;
    slots = 4;
    kvType = "q8_0";
    flashAttention = "auto";
    lockMemory = true;
    numa = "distribute";
    threads = 6;
    batchSize = 1024;
    microBatchSize = 256;
    gpuLayers = 12;
    # Layers on a GPU need one that the unit sees.
    accelerator = "rocm";
  };
  settings.models.coder = {
    aliases = [
      "gpt-4o"
      "default"
    ];
    port = 9001;
    context_size = 16384;
    slots = 4;
    kv_type = "q8_0";
    flash_attention = "auto";
    lock_memory = true;
    numa = "distribute";
    threads = 6;
    batch_size = 1024;
    micro_batch_size = 256;
    gpu_layers = 12;
  };
  units."lares-llama-coder.service".has = [ "LimitMEMLOCK=infinity" ];
}
