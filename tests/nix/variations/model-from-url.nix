{
  bare = true;
  module.services.lares.models.tiny = {
    url = "https://models.example.org/tiny.gguf";
    sha256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32";
  };
  units."lares-model-tiny.service".has = [ ''"model" "pull" "tiny"'' ];
  settings.models.tiny = {
    url = "https://models.example.org/tiny.gguf";
    sha256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32";
  };
}
