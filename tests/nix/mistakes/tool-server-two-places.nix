{
  title = "A tool server in two places";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    tools.servers.git = {
      command = [ "/srv/bin/mcp-server-git" ];
      url = "http://127.0.0.1:9400/mcp";
    };
  };
  message = ''
    services.lares.tools.servers.git sets command and url; keep one of them.
  '';
}
