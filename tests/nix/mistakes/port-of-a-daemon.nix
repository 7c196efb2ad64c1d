{
  title = "A model on a daemon's port";
  module.services.lares.models.coder = {
    path = "/srv/models/coder.gguf";
    port = 8092;
  };
  message = "TCP port 8092 is taken by services.lares.coordinator.listen and services.lares.models.coder.port. Set services.lares.models.coder.port to another one.";
}
