"""The dashboard: pages over `experiment_service.reporting`, run by Streamlit."""
