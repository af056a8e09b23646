"""What a detector's scores are worth, without torch. Others use any module of it."""
