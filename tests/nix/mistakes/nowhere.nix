{
  title = "A model that says nowhere where it is";
  module.services.lares.models.coder.contextSize = 8192;
  message = ''
    services.lares.models.coder says nowhere where the model is. Set one of
      services.lares.models.coder.source = "qwen2.5-coder-1.5b-instruct";   # a name that `lares model list` prints
      services.lares.models.coder.path = "/data/models/coder.gguf";         # a file that is there
      services.lares.models.coder.url = "https://…";                        # with services.lares.models.coder.sha256
  '';
}
