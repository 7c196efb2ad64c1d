# The machine whose rendered units are started under real systemd.
{
  # The test makes them there: one that the healer is told of, one that it is not.
  systemd.services.app = { };
  systemd.services.bystander = { };

  services.lares = {
    enable = true;
    models.coder = {
      path = "/srv/models/coder.gguf";
      contextSize = 4096;
      aliases = [ "gpt-4o" ];
    };
    # The same file, fetched (the test serves it) and verified before it is served.
    models.fetched = {
      url = "http://127.0.0.1:9090/coder.gguf";
      sha256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32";
      contextSize = 1024;
      memoryMax = "2 GiB";
    };
    coordinator.upstreams.far = {
      url = "http://127.0.0.1:9/v1";
      models.far = "far";
      apiKeyFile = "/run/secrets/far.key";
    };
    ralph.repositories = [ "/srv/repositories" ];
    tools = {
      servers = {
        greeter = {
          command = [
            "/usr/bin/python3"
            "/srv/mcp/mcp.py"
            "greeter"
            "/srv/notes/description"
          ];
          envFiles.TOKEN = "/run/secrets/greeter.token";
          read = [ "/srv/mcp" ];
          write = [ "/srv/notes" ];
          trusted = true;
        };
        stranger = {
          command = [
            "/usr/bin/python3"
            "/srv/mcp/mcp.py"
            "stranger"
          ];
          read = [ "/srv/mcp" ];
        };
      };
      circuitOpen = "1s";
      search.model = "/srv/models/embed.gguf";
      memoryMax = "2 GiB";
    };
    healer = {
      # Much happens within a minute here.
      cooldown = "1s";
      maxPerHour = 60;
      maxPerMinute = 60;
      verifyHold = "2s";
      units."app.service" = {
        probe = {
          http = "http://127.0.0.1:9000/";
          interval = "1s";
        };
        memoryMax = "512 MiB";
        ports = [ 9010 ];
        portVariable = "VICTIM_PORT";
      };
    };
  };
}
