{
  title = "A secret that would be copied into the store";
  module.services.lares.coordinator.upstreams.cloud = {
    url = "https://api.example.org/v1";
    models.large = "provider-model-name";
    apiKeyFile = ./secret-in-the-store.nix;
  };
  message = ''
    A definition for option `services.lares.coordinator.upstreams.cloud.apiKeyFile' is not of type `null or path of a secret outside the Nix store, written as a string such as "/run/secrets/name"'.
  '';
}
