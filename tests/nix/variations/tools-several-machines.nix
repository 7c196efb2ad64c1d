# The secrets of a database elsewhere, of Qdrant and of another machine's coordinator reach the tools daemon too.
{
  module.services.lares = {
    database.createLocally = false;
    allowedAddresses = [ "10.77.0.1" ];
    store = {
      urlFile = "/run/secrets/database";
      vectors = {
        backend = "qdrant";
        url = "http://10.77.0.1:6334";
        apiKeyFile = "/run/secrets/qdrant.key";
      };
    };
    qdrant.createLocally = false;
    ralph = {
      coordinatorUrl = "https://control.internal/v1";
      coordinatorKeyFile = "/run/secrets/agent.key";
    };
    tools.search = {
      embedding = "endpoint";
      model = "embed";
    };
  };
  units."lares-tools.service" = {
    has = [
      "LoadCredential=store-url:/run/secrets/database"
      "LoadCredential=vectors-api-key:/run/secrets/qdrant.key"
      "LoadCredential=coordinator-key:/run/secrets/agent.key"
      "LARES_RALPH__COORDINATOR_KEY_FILE=%d/coordinator-key"
    ];
    # The coordinator that makes the embeddings has a name.
    lacks = [ "IPAddressDeny" ];
  };
}
