# What looks a little like a secret and is none is taken.
{
  module.services.lares.tools.servers = {
    local = {
      command = [
        "/srv/bin/local"
        "--token-file=/run/token"
        "--max-tokens=100"
        "--password=/run/secrets/password"
        "--keyboard=us"
        "sk-short"
      ];
      env = {
        MAX_TOKENS = "100";
        TOKENIZERS_PARALLELISM = "false";
        GOOGLE_APPLICATION_CREDENTIALS = "/run/secrets/google.json";
        API_KEY = "";
        KEYMAP = "us";
      };
    };
    near.url = "http://127.0.0.1:9400/mcp?session=1&limit=5";
  };
  settings.tools.servers = {
    local.env.MAX_TOKENS = "100";
    near.url = "http://127.0.0.1:9400/mcp?session=1&limit=5";
  };
}
