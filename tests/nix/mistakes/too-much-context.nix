{
  title = "More context than any machine has memory for";
  module.services.lares.models.coder = {
    path = "/srv/models/coder.gguf";
    contextSize = 262144;
    slots = 8;
  };
  message = "services.lares.models.coder: contextSize × slots is 262144 × 8 = 2097152 tokens, all kept in memory from the start; more than 1048576 is refused. contextSize is per request already.";
}
