# A remote model: its key is a credential of the coordinator alone, and only the coordinator may leave the machine.
{
  module.services.lares.coordinator.upstreams = {
    cloud = {
      url = "https://api.example.org/v1";
      models.large = "provider-model-name";
      apiKeyFile = "/run/secrets/cloud.key";
      maxInFlight = 2;
    };
    "second-one" = {
      url = "http://127.0.0.1:9999/v1";
      models."gpt-4.1" = "gpt-4.1";
      apiKeyFile = "/run/secrets/second.key";
    };
  };
  settings.coordinator.upstreams = {
    cloud = {
      url = "https://api.example.org/v1";
      models.large = "provider-model-name";
      max_in_flight = 2;
      api_key_file = "/run/credentials/lares-coordinator.service/upstream-cloud";
    };
    "second-one".models."gpt-4.1" = "gpt-4.1";
  };
  units = {
    "lares-coordinator.service" = {
      has = [
        "LoadCredential=upstream-cloud:/run/secrets/cloud.key"
        "LoadCredential=upstream-second-one:/run/secrets/second.key"
      ];
      lacks = [ "IPAddressDeny" ];
    };
    "lares-ralph.service" = {
      has = [ "IPAddressDeny=any" ];
      lacks = [ "cloud.key" ];
    };
    "lares-llama-coder.service".lacks = [ "cloud.key" ];
  };
}
