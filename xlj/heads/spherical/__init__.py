"""Label rows in factored form, for spherical losses."""
