{
  title = "Vectors of another width than the model makes";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    store.vectors.dimensions = 768;
  };
  message = ''
    services.lares.tools.search.model = "all-minilm-l6-v2" makes vectors of 384 numbers; services.lares.store.vectors.dimensions is 768. Set it to 384, or name another model.
  '';
}
