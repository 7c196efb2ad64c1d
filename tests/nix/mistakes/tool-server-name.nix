{
  title = "A tool server with a name that is none";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    tools.servers."My Git".command = [ "/srv/bin/mcp-server-git" ];
  };
  message = ''
    services.lares.tools.servers."My Git": the name of a tool server has up to 32 of a-z, 0-9, "-", "_" and ".", starts with a letter or digit, and has no "__" in it and no "_" at its end: its tools are called NAME__TOOL.
  '';
}
