"""Many runs over some options."""
