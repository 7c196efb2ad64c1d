{
  title = "A token that everybody can read";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    tools.servers.github = {
      command = [ "/srv/bin/github-mcp-server" ];
      env.GITHUB_TOKEN = "the-token";
    };
  };
  message = ''
    services.lares.tools.servers.github.env.GITHUB_TOKEN looks like a secret, and everybody can read it in the Nix store. Put it into a file and name that: services.lares.tools.servers.github.envFiles.GITHUB_TOKEN = "/run/secrets/…".
  '';
}
