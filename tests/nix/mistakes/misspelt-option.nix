{
  title = "A misspelt option";
  module.services.lares.ralph.maxIteration = 5;
  message = "The option `services.lares.ralph.maxIteration' does not exist.";
}
