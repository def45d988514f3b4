"""The foundations that every room uses: errors, files, pictures, devices, settings, processes.

They import none of the other rooms.
"""
