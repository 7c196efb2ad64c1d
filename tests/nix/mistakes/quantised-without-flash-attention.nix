{
  title = "A quantised KV cache without flash attention";
  module.services.lares.models.coder = {
    path = "/srv/models/coder.gguf";
    kvType = "q4_0";
    flashAttention = "off";
  };
  message = ''
    services.lares.models.coder: kvType = "q4_0" needs flash attention. Set flashAttention = "on", or kvType = "f16".
  '';
}
