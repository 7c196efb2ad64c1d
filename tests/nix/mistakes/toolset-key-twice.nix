{
  title = "A key in two toolsets";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    tools.toolsets = {
      review.keys = [ "laptop" ];
      writing.keys = [ "laptop" ];
    };
  };
  message = ''
    The key "laptop" is in services.lares.tools.toolsets.review.keys and services.lares.tools.toolsets.writing.keys, and a key sees one toolset. Keep it at one; every key may use the URL of a toolset without keys.
  '';
}
