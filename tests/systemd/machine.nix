# The machine whose rendered units are started under real systemd.
{
  services.lares = {
    enable = true;
    models.coder = {
      path = "/srv/models/coder.gguf";
      contextSize = 4096;
      aliases = [ "gpt-4o" ];
    };
    coordinator.upstreams.far = {
      url = "http://127.0.0.1:9/v1";
      models.far = "far";
      apiKeyFile = "/run/secrets/far.key";
    };
    ralph.repositories = [ "/srv/repositories" ];
  };
}
