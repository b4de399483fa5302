"""Define the commands of this distribution, which `penstock` finds through their entry points."""
