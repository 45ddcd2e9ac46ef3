"""Building blocks of methods: functions and tiny modules that know no method."""
