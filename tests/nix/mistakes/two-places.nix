{
  title = "A model in two places";
  module.services.lares.models.coder = {
    source = "qwen2.5-coder-0.5b-instruct";
    path = "/srv/models/coder.gguf";
  };
  message = "services.lares.models.coder sets source and path; keep one of them.";
}
