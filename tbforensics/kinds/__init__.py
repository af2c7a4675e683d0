"""Families of incidents. One file each, named as the kind is named everywhere."""
