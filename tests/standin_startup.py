"""What a notebook's kernel runs first where GAN_EBM_DEVICE is "standin" (see conftest.py)."""

if __name__ == "__main__":
    __import__("standin").install()
