{
  title = "A tool server that says nowhere where it is";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    tools.servers.git.trusted = true;
  };
  message = ''
    services.lares.tools.servers.git says nowhere where the server is. Set one of
      services.lares.tools.servers.git.command = [ (lib.getExe pkgs.mcp-server-git) ];   # a program that speaks MCP on stdio
      services.lares.tools.servers.git.url = "http://127.0.0.1:9400/mcp";                # one that is running
  '';
}
