{
  title = "A diagnosis by a model that is not there";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    healer.diagnosisModel = "large";
  };
  message = ''services.lares.healer: diagnosis_model = "large" is no model here. There is coder.'';
}
