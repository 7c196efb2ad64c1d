# Embeddings of a model that the coordinator offers, or of a server elsewhere with a key.
{
  module.services.lares = {
    models.embed = {
      path = "/srv/models/embed.gguf";
      embeddings = true;
    };
    tools.search = {
      embedding = "endpoint";
      model = "embed";
      apiKeyFile = "/run/secrets/embeddings.key";
    };
  };
  absentPrefix = [ "lares-model-" ];
  settings.tools.search = {
    embedding = "endpoint";
    model = "embed";
    api_key_file = "/run/credentials/lares-tools.service/search-api-key";
  };
  units."lares-tools.service".has = [
    "lares-coordinator.service"
    "LoadCredential=search-api-key:/run/secrets/embeddings.key"
    "IPAddressDeny=any"
  ];
}
