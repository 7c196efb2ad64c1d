{
  title = "Embeddings by a model that is not there";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    tools.search = {
      embedding = "endpoint";
      model = "embed";
    };
  };
  message = ''
    services.lares.tools.search.model = "embed" is no model here. There is coder. Name one of them that makes embeddings, or set services.lares.tools.search.url.
  '';
}
