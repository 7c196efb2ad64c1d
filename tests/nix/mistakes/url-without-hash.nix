{
  title = "A URL without a hash";
  module.services.lares.models.coder.url = "https://models.example.org/coder.gguf";
  message = "services.lares.models.coder.url needs services.lares.models.coder.sha256: a file from the network is used only when its hash is known (`sha256sum FILE` prints it).";
}
