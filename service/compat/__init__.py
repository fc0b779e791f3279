"""APIs of other systems, translated to the generation plans of this one."""
