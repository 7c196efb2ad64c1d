# Models that the healer asks: it then has the key that the coordinator asks for, and only that one.
{
  module.services.lares = {
    models.embed = {
      path = "/srv/models/embed.gguf";
      embeddings = true;
    };
    healer.embeddingModel = "embed";
    healer.diagnosisModel = "coder";
  };
  settings.healer = {
    embedding_model = "embed";
    diagnosis_model = "coder";
  };
  units."lares-healer.service".has = [
    "LoadCredential=coordinator-key:/var/lib/lares/keys/agent.key"
    "LARES_RALPH__COORDINATOR_KEY_FILE=%d/coordinator-key"
    "lares-setup.service"
  ];
}
