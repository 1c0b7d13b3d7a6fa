"""What is read: claims, tables, figures, chapters, pages and the explorer, all made from records."""
